from django.apps import AppConfig


class MessagingConfig(AppConfig):
    name = "bankcore.messaging"
    label = "messaging"
    verbose_name = "Messaging"
