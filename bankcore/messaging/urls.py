"""Where the calls of the dead-letter desk live, below /api/v1/."""

from django.urls import path

from bankcore.messaging import views

urlpatterns = [
    path("dead-letters", views.DeadLetters.as_view(), name="dead-letters"),
    path("dead-letters/replay", views.ReplayMany.as_view(), name="dead-letters-replay"),
    path("dead-letters/<str:letter_id>", views.OneDeadLetter.as_view(), name="dead-letter"),
    path("dead-letters/<str:letter_id>/replay", views.Replay.as_view(), name="dead-letter-replay"),
    path("dead-letters/<str:letter_id>/discard", views.Discard.as_view(), name="dead-letter-discard"),
    path("dead-letters/<str:letter_id>/approve", views.Approve.as_view(), name="dead-letter-approve"),
    path("dead-letters/<str:letter_id>/withdraw", views.Withdraw.as_view(), name="dead-letter-withdraw"),
]
